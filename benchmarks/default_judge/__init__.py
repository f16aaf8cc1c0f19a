"""The default judge: the battles it is trained on, and how it was measured."""
