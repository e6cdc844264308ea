/*
 * What the user has created in this QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_CREATED_H
#define SYSTEM_CREATED_H

/* Begin to log what is created, for the QMP command query-created */
void created_init(void);

#endif
