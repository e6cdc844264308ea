/*
 * QTest testcase for a vhost-user-blk disk that moves to another QEMU while
 * its back-end serves it
 *
 * The test acts as the guest's driver before and after the move, so it can
 * stop at points where a real guest stops only by chance.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/sockets.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "libqtest.h"
#include "migration/migration-qmp.h"
#include "storage-daemon.h"

#define TIMEOUT_S       60
#define SLOT            4
#define SECTOR_SIZE     512
#define RAM_SIZE        "32M"
#define STATUS_NONE     0xff    /* no disk writes this status */

typedef struct Request {
    uint64_t status;            /* address of the status byte */
    uint32_t head;
} Request;

typedef struct Fixture {
    char *dir;
    char *uri;
    StorageDaemon daemon;
    bool copied;                /* migration copies the RAM */

    /* State in the QEMU that runs the guest */
    QTestState *qts;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;

    /* State of the guest, which moves along */
    QGuestAllocator alloc;
    QVirtQueue *vq;
} Fixture;

/*
 * VMs
 */

/* Two QEMUs share a RAM file, unless the RAM is copied. */
static QTestState *vm_new(Fixture *f, const char *options)
{
    g_autofree char *ram = f->copied ?
        g_strdup("memory-backend-memfd") :
        g_strdup_printf("memory-backend-file,share=on,mem-path=%s/ram", f->dir);
    QTestState *qts;

    qts = qtest_initf("-machine pc,memory-backend=ram -nodefaults"
                      " -m " RAM_SIZE " -object %s,id=ram,size=" RAM_SIZE
                      " -chardev socket,id=chr,path=%s/disk"
                      " -device vhost-user-blk-pci,id=disk,chardev=chr,addr=%d"
                      " -global migration.backend-transfer=on %s",
                      ram, f->dir, SLOT, options);
    migrate_set_capability(qts, "return-path", true);
    migrate_set_capability(qts, "events", true);
    migrate_set_capability(qts, "x-ignore-shared", !f->copied);
    return qts;
}

static void set_features(QVirtioDevice *vdev)
{
    uint64_t features = qvirtio_get_features(vdev);

    features &= ~(QVIRTIO_F_BAD_FEATURE |
                  1ull << VIRTIO_RING_F_INDIRECT_DESC |
                  1ull << VIRTIO_RING_F_EVENT_IDX);
    qvirtio_set_features(vdev, features);
}

static void boot(Fixture *f)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(SLOT, 0) };

    f->qts = vm_new(f, "");
    pc_alloc_init(&f->alloc, f->qts, 0);
    f->bus = qpci_new_pc(f->qts, NULL);
    f->dev = virtio_pci_new(f->bus, &addr);
    g_assert_nonnull(f->dev);
    qvirtio_pci_device_enable(f->dev);
    qvirtio_start_device(&f->dev->vdev);
    set_features(&f->dev->vdev);
    f->vq = qvirtqueue_setup(&f->dev->vdev, &f->alloc, 0);
    qvirtio_set_driver_ok(&f->dev->vdev);
}

static void leave(Fixture *f)
{
    g_free(f->dev->pdev);
    g_free(f->dev);
    qpci_free_pc(f->bus);
    qtest_quit(f->qts);
}

/* The guest moves to @qts, and does not set up the device again. */
static void arrive(Fixture *f, QTestState *qts)
{
    QPCIBus *bus = qpci_new_pc(qts, NULL);
    QVirtioPCIDevice *dev = g_memdup2(f->dev, sizeof(*dev));

    dev->pdev = g_memdup2(f->dev->pdev, sizeof(*dev->pdev));
    dev->pdev->bus = bus;
    leave(f);
    f->qts = qts;
    f->bus = bus;
    f->dev = dev;
    f->vq->vdev = &dev->vdev;
}

static void wait_state(QTestState *qts, const char *expected)
{
    g_autofree char *state = NULL;

    while (g_strcmp0(state, expected)) {
        g_autoptr(QDict) info =
            qtest_qmp_assert_success_ref(qts, "{ 'execute': 'query-status' }");

        g_free(state);
        state = g_strdup(qdict_get_str(info, "status"));
    }
}

/* Migrate, and return the new QEMU. The old one stays until arrive(). */
static QTestState *migrate(Fixture *f)
{
    QTestState *to = vm_new(f, "-incoming defer");

    migrate_incoming_qmp(to, f->uri, NULL, "{ 'exit-on-error': false }");
    migrate_qmp(f->qts, to, f->uri, NULL, "{}");
    wait_for_migration_complete(f->qts);
    wait_for_migration_complete(to);
    wait_state(f->qts, "postmigrate");
    wait_state(to, "running");
    return to;
}

/*
 * Requests
 */

/* Add a read of one sector to the ring without a kick. */
static Request ring_add_read(Fixture *f)
{
    struct virtio_blk_outhdr hdr = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    uint64_t addr = guest_alloc(&f->alloc, 1024);
    uint16_t avail = qtest_readw(f->qts, f->vq->avail + 2);
    Request req = { .status = addr + sizeof(hdr) + SECTOR_SIZE };

    qtest_memwrite(f->qts, addr, &hdr, sizeof(hdr));
    qtest_writeb(f->qts, req.status, STATUS_NONE);
    req.head = qvirtqueue_add(f->qts, f->vq, addr, sizeof(hdr), false, true);
    qvirtqueue_add(f->qts, f->vq, addr + sizeof(hdr), SECTOR_SIZE, true,
                   true);
    qvirtqueue_add(f->qts, f->vq, req.status, 1, true, false);
    qtest_writew(f->qts, f->vq->avail + 4 + 2 * (avail % f->vq->size),
                 req.head);
    qvirtqueue_set_avail_idx(f->qts, &f->dev->vdev, f->vq, avail + 1);
    return req;
}

static Request start_read(Fixture *f)
{
    Request req = ring_add_read(f);

    f->dev->vdev.bus->virtqueue_kick(&f->dev->vdev, f->vq);
    return req;
}

/* Wait for the device's call, which must be for this request. */
static void wait_read(Fixture *f, Request req)
{
    qvirtio_wait_used_elem(f->qts, &f->dev->vdev, f->vq, req.head, NULL,
                           TIMEOUT_S * G_USEC_PER_SEC);
    g_assert_cmphex(qtest_readb(f->qts, req.status), ==, VIRTIO_BLK_S_OK);
}

/*
 * The tests
 */

static void setup(Fixture *f, const void *copied)
{
    g_autofree char *path = NULL;

    alarm(2 * TIMEOUT_S);
    f->copied = copied;
    f->dir = g_dir_make_tmp("vhost-user-blk-transfer-XXXXXX", NULL);
    g_assert_nonnull(f->dir);
    f->uri = g_strdup_printf("unix:%s/migration", f->dir);
    path = g_strdup_printf("%s/disk", f->dir);
    storage_daemon_start(&f->daemon, unix_listen(path, &error_abort),
                         f->copied ? DISK_SLOW : DISK_HELD, "");
    boot(f);
    wait_read(f, start_read(f));
}

static void teardown(Fixture *f, const void *copied)
{
    static const char *const files[] = { "disk", "migration", "ram" };

    qvirtqueue_cleanup(f->dev->vdev.bus, f->vq, &f->alloc);
    leave(f);
    storage_daemon_stop(&f->daemon);
    alloc_destroy(&f->alloc);
    for (int i = 0; i < ARRAY_SIZE(files); i++) {
        g_autofree char *path = g_strdup_printf("%s/%s", f->dir, files[i]);

        unlink(path);
    }
    g_assert_cmpint(rmdir(f->dir), ==, 0);
    g_free(f->uri);
    g_free(f->dir);
    alarm(0);
}

/* A request is in flight while the guest moves */
static void test_in_flight(Fixture *f, const void *copied)
{
    Request req = start_read(f);

    arrive(f, migrate(f));
    g_assert_cmphex(qtest_readb(f->qts, req.status), ==, STATUS_NONE);
    storage_daemon_drain(&f->daemon);
    wait_read(f, req);

    req = start_read(f);
    storage_daemon_drain(&f->daemon);
    wait_read(f, req);
}

/*
 * The guest stops after adding a request, before the kick. Its RAM is copied,
 * so the request must complete at the source.
 */
static void test_not_kicked(Fixture *f, const void *copied)
{
    Request req;
    QTestState *to;

    req = ring_add_read(f);
    to = migrate(f);
    g_assert_cmphex(qtest_readb(f->qts, req.status), ==, VIRTIO_BLK_S_OK);
    arrive(f, to);
    wait_read(f, req);
    wait_read(f, start_read(f));
}

/*
 * The parameter is off, and the back-end cannot work behind an IOMMU. This
 * turns out when it is connected: each migrate-incoming fails.
 */
static void test_incoming_refused(void)
{
    g_autofree char *dir =
        g_dir_make_tmp("vhost-user-blk-transfer-XXXXXX", NULL);
    g_autofree char *path = g_strdup_printf("%s/disk", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", dir);
    StorageDaemon daemon;
    QTestState *qts;

    storage_daemon_start(&daemon, unix_listen(path, &error_abort), DISK_HELD,
                         "");
    qts = qtest_initf("-machine q35,memory-backend=ram -nodefaults"
                      " -m " RAM_SIZE " -device intel-iommu"
                      " -object memory-backend-memfd,id=ram,size=" RAM_SIZE
                      " -chardev socket,id=chr,path=%s"
                      " -device vhost-user-blk-pci,id=disk,chardev=chr,"
                      "iommu_platform=on,disable-legacy=on"
                      " -incoming defer", path);
    for (int i = 0; i < 3; i++) {
        QDict *err = qtest_qmp_assert_failure_ref(qts,
            "{ 'execute': 'migrate-incoming', 'arguments':"
            " { 'uri': %s, 'exit-on-error': false } }", uri);

        g_assert_nonnull(strstr(qdict_get_str(err, "desc"), "iommu_platform"));
        qobject_unref(err);
    }
    qtest_quit(qts);
    storage_daemon_stop(&daemon);
    unlink(path);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!storage_daemon_init()) {
        return g_test_run();
    }

    g_test_add("/vhost-user-blk-transfer/in-flight", Fixture, NULL,
               setup, test_in_flight, teardown);
    g_test_add("/vhost-user-blk-transfer/not-kicked", Fixture, "",
               setup, test_not_kicked, teardown);
    if (qtest_has_machine("q35") && qtest_has_device("intel-iommu")) {
        qtest_add_func("/vhost-user-blk-transfer/incoming-refused",
                       test_incoming_refused);
    }
    return g_test_run();
}
