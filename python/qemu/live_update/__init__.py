# SPDX-License-Identifier: GPL-2.0-or-later
"""
Update the QEMU under a running VM

docs/system/live-update.rst is the manual.  cli runs an update from its
arguments to its exit status:

  recovery   completes or undoes an earlier update that was killed
  plan       checks whether the VM can be updated, and changes nothing
  update     starts the new QEMU, migrates the VM, or takes it back
  new_qemu   the new QEMU: its process, its monitor, and its private files
  migration  the migration from the old QEMU to the new one

The packages vm, host and report have what they need to know of the VM, of the
host, and for the option --report.
"""
