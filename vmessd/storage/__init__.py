"""Files: the VM directory, disk images, logs and their rotation; and the threads in which files are waited for.

Whoever may write to a VM directory is not trusted: everything is opened as :mod:`vmessd.storage.safefile` does.
"""
