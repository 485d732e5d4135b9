"""Devices of a VM: disks and their snapshots, CD drive, shares, network cards, console, VNC, keyboard.

Each module takes a machine of :mod:`vmessd.vm` and uses or changes the devices that its QEMU emulates.
"""
