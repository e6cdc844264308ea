/*
 * Features and limits of the devices in fuzz targets of vhost-user
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "fuzz-vhost-user.h"

const uint8_t fuzz_features[12] = {
    0x80, 0x81, 0x83, 0x84, 0x88, 0x90, 0xa0, 0xc0, 0xff, 0x00, 0x07, 0x7f,
};

void fuzz_set_features(Device *d, uint8_t bits)
{
    d->rings = 1 + (bits & 3);
    d->protocol_features |= bits & 4 ? PF_SLOTS : 0;
    d->protocol_features |= bits & 8 ? PF_INFLIGHT : 0;
    d->protocol_features |= bits & 16 ? PF_BACKEND_REQ : 0;
    d->protocol_features |= bits & 32 ? PF_STATUS : 0;
    d->features |= bits & 64 ? F_RING_PACKED : 0;
}

#define LIMIT   MAKE_64BIT_MASK(0, 47)

static void limit_region(MsgRegion *region)
{
    region->guest_addr &= LIMIT;
    region->size = MAX(region->size & LIMIT, 1);
    region->user_addr &= LIMIT;
}

void fuzz_limit_memory(Msg *msg)
{
    if (msg->request == MSG_SET_MEM_TABLE) {
        for (unsigned i = 0; i < MSG_REGIONS; i++) {
            limit_region(&msg->table.region[i]);
        }
    } else if (msg->request == MSG_ADD_MEM_REG ||
               msg->request == MSG_REM_MEM_REG) {
        limit_region(&msg->slot.region);
    } else if (msg->request == MSG_SET_INFLIGHT_FD) {
        msg->inflight.mmap_size &= LIMIT;
    }
}
