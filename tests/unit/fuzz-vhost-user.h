/*
 * Features and limits of the devices in fuzz targets of vhost-user
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_VHOST_USER_H
#define TESTS_UNIT_FUZZ_VHOST_USER_H

#include "vhost-user-device.h"

/* Space for the longest message that fuzzed devices send */
#define FUZZ_MESSAGE        0x1000

/* A bit for fuzz_set_features() that is no feature: the device is started */
#define FUZZ_STARTED        0x80

/* Sets of features with which good inputs are made */
extern const uint8_t fuzz_features[12];

/**
 * fuzz_set_features:
 * @d: the device
 * @bits: the number of rings minus 1 in the two lowest bits, then one bit for
 *        each feature; FUZZ_STARTED is ignored
 *
 * Set the number of rings and the features of a device.
 */
void fuzz_set_features(Device *d, uint8_t bits);

/**
 * fuzz_limit_memory:
 * @msg: a message
 *
 * Change the memory regions in @msg to ones that a QEMU can have mapped: not
 * empty, and within the user address space.
 */
void fuzz_limit_memory(Msg *msg);

#endif /* TESTS_UNIT_FUZZ_VHOST_USER_H */
