"""What a command line may say: argument dataclasses and parsing."""
