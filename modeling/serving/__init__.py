"""A judge for many people: server and web page."""
