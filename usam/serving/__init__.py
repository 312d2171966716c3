"""A saved model for other people: a web page and an API."""
