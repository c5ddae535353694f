"""Whatever fsspec serves (FTP, SMB, HDFS, …), with the weakest calls that all have in common."""
