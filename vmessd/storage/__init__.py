"""Files: the VM directory, disk images, logs and their rotation; and the threads for blocking file access.

Anybody who can write to a VM directory is untrusted: everything is opened by :mod:`vmessd.storage.safefile`.
"""
