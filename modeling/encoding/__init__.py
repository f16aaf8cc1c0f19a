"""Battles to batches: encoder, tokenizer, packed sequences, collator, audit."""
