"""Curves of run folders, and pictures of episodes."""
