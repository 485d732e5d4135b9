"""Devices of a running VM: network cards and cables, serial console, VNC, keyboard.

Each module takes a machine of :mod:`vmessd.vm` and uses or changes the devices that its QEMU emulates.
"""
