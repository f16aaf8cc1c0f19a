"""Model cards from facts, and uploads to the Hub."""
