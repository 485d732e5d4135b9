"""Files: the VM directory, disk images, logs and their rotation; and the threads for blocking file access.

Nobody who can write to a VM directory is trusted: all its files are opened by :mod:`vmessd.storage.safefile`.
"""
