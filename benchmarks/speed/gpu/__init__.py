"""Measurements that need a GPU, as one command of a few minutes; its dry run needs none."""
