# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the host knows of a QEMU: its processes, their rights, and its files

The new QEMU gets the environment, limits and user of the old one (process),
its capabilities, seccomp mode and LSM label (confinement), and its CPU
affinity and priority (scheduling).  While both QEMUs run, the sockets and the
pid file of the new one are in private folders (private_files).
"""
