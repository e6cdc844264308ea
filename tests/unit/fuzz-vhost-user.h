/*
 * What devices in fuzz targets of vhost-user are like, and never do
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_VHOST_USER_H
#define TESTS_UNIT_FUZZ_VHOST_USER_H

#include "vhost-user-device.h"

/* Space for the longest message that fuzzed devices send */
#define FUZZ_MESSAGE        0x1000

/* For fuzz_set_features(): the device has been started */
#define FUZZ_STARTED        0x80

/* Choices of features that good inputs are made with */
extern const uint8_t fuzz_features[12];

/* Give a device features; a bit of @bits stands for each, but FUZZ_STARTED */
void fuzz_set_features(Device *d, uint8_t bits);

/* Have memory in @msg that a QEMU may have mapped: not empty, with an end */
void fuzz_limit_memory(Msg *msg);

#endif
