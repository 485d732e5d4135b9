"""Files: the VM directory, images and what they stand on, archives, logs; and threads for blocking file access.

Nobody who can write to a VM directory is trusted: all its files are opened by :mod:`vmessd.storage.safefile`.
"""
