from modeling.runtime.text_tables import format_table


def test_columns_line_up_and_numbers_stay_as_they_were_rounded():
    rows = [("language", "battles"), ("English", "1,200"), ("日本語", "0.50")]
    assert format_table(rows).splitlines() == ["language    battles", "English     1,200", "日本語      0.50"]
