"""Folders and files at the other end of a line: one driver over what it asks of them (`calls`), which SFTP and fsspec answer."""
