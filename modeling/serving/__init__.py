"""A judge for many people: server, web page, protocols."""
