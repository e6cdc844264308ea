# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a VM is made of: command line, devices, images, and memory

The new QEMU needs a command line that creates what the VM has now.  These
modules read it from the running QEMU: cmdline parses and changes the options,
devices follows what was plugged and unplugged, blocks describes the block
layer, and memory chooses how the guest's memory gets to the new QEMU.
"""
