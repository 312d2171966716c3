"""Chats and sound in, tensors out."""
