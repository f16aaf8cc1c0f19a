"""Text to batches: template and truncation, tokenizer, packed sequences, collator, audit."""
