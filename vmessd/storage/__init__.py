"""Files: the VM directory, images and their bases, archives, logs; and threads for blocking file access.

Nobody who can write to a VM directory is trusted: all its files are opened by :mod:`vmessd.storage.safefile`.
"""
