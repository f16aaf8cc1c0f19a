"""What is measured and compared; not part of the installed package."""
