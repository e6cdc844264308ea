/*
 * QMP command query-created: what the user has created, with which options
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block-global-state.h"
#include "chardev/char.h"
#include "hw/qdev-core.h"
#include "monitor/qdev.h"
#include "net/net.h"
#include "qapi/qapi-commands-created.h"
#include "qemu/creation-log.h"
#include "qom/object.h"
#include "system/created.h"

static bool at_startup(void)
{
    return !phase_check(PHASE_MACHINE_READY);
}

static const void *find(CreatedKind kind, const char *id)
{
    switch (kind) {
    case CREATED_KIND_BLOCKDEV:
        return bdrv_find_node(id);
    case CREATED_KIND_CHARDEV:
        return qemu_chr_find(id);
    case CREATED_KIND_DEVICE:
        if (id[0] == '/') {
            return object_resolve_path(id, NULL);
        }
        return object_resolve_path_component(
            machine_get_container("peripheral"), id);
    case CREATED_KIND_NETDEV:
        return qemu_find_netdev(id);
    case CREATED_KIND_OBJECT:
        return object_resolve_path_component(object_get_objects_root(), id);
    default:
        g_assert_not_reached();
    }
}

static const CreationLogOps ops = {
    .at_startup = at_startup,
    .find = find,
};

void created_init(void)
{
    creation_log_start(&ops);
}

CreatedThingList *qmp_query_created(Error **errp)
{
    return creation_log_query();
}
