"""Folders behind SFTP: one request after the other, and the requests of many small files in one piece."""
