"""Rows that can be asked, and files that survive."""
