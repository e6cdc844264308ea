# SPDX-License-Identifier: GPL-2.0-or-later
"""
How the kernel schedules a process or a thread
"""
import os


class Scheduling:
    """
    CPU affinity, nice value, scheduling policy and real-time priority.

    @param pid: process or thread that has them; 0: the calling thread
    """
    def __init__(self, pid: int) -> None:
        self.affinity = os.sched_getaffinity(pid)
        self.nice = os.getpriority(os.PRIO_PROCESS, pid)
        self.policy = os.sched_getscheduler(pid)
        self.priority = os.sched_getparam(pid)

    def apply_to(self, pid: int) -> None:
        """
        Give them to another process or thread (0: the calling thread).

        Values that it has are not set, which could take privileges.  Raises
        OSError if one cannot be set.
        """
        other = Scheduling(pid)
        if other.affinity != self.affinity:
            os.sched_setaffinity(pid, self.affinity)
        if (other.policy, other.priority) != (self.policy, self.priority):
            os.sched_setscheduler(pid, self.policy, self.priority)
        if other.nice != self.nice:
            os.setpriority(os.PRIO_PROCESS, pid, self.nice)
