/* QEMU TCG plugin: instructions of an AArch64 guest by class, counted between two marker system calls.
 *
 * The guest opens a window with getpgid(OPEN) and closes it with getpgid(CLOSE). At each close one line goes to QEMU's plugin
 * log: "edgesdk-window TOTAL INTEGER FP NEON DOT_PRODUCT MEMORY BRANCH". A block's instructions are classed once, when it is
 * translated; while it runs the cost is one addition a block. The guest's threads must not overlap within a window.
 *
 * The interface is declared here because Debian ships no header: QEMU's plugin API, versions 1 to 4. Build with -DAPI=N.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef API
#error "define API: the plugin interface of the qemu that will load this"
#endif
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*callback)(unsigned int, void *), int flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id,
                                          void (*callback)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t,
                                                           uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
#if API >= 3
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *into, size_t bytes);
#else
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
#endif
void qemu_plugin_outs(const char *text);

enum { GETPGID = 155, OPEN = 0x45444745, CLOSE = 0x45444746 };
enum { INTEGER, FP, NEON, DOT_PRODUCT, MEMORY, BRANCH, CLASSES };

struct block {
    uint64_t runs;
    uint32_t by_class[CLASSES];
    struct block *next;
};

EXPORT int qemu_plugin_version = API;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static bool counting;

/* By bits 28..25, the top level of the A64 encoding (Arm ARM, C4.1); SDOT and UDOT, vector and by element, by their opcode. */
static int class_of(uint32_t word) {
    uint32_t group = word >> 25 & 0xF;
    bool scalar_fp = (word >> 28 & 1) != 0 && (word >> 30 & 1) == 0;
    if ((group & 0x5) == 0x4)
        return MEMORY;
    if ((group & 0x7) == 0x7) {
        if ((word & 0x9FE0FC00) == 0x0E809400 || (word & 0x9FC0F400) == 0x0F80E000)
            return DOT_PRODUCT;
        return scalar_fp ? FP : NEON;
    }
    return (group & 0xE) == 0xA ? BRANCH : INTEGER;
}

static void run(unsigned int cpu, void *data) {
    (void)cpu;
    if (counting)
        ((struct block *)data)->runs++;
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    struct block *block = calloc(1, sizeof *block);
    if (block == NULL)
        abort();
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++) {
        uint32_t word = 0;
#if API >= 3
        qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i), &word, sizeof word);
#else
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
#endif
        block->by_class[class_of(word)]++;
    }
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, run, NO_REGISTERS, block);
}

static void tell(void) {
    uint64_t sums[CLASSES] = {0}, total = 0;
    char line[256];
    for (struct block *block = blocks; block != NULL; block = block->next)
        for (int i = 0; i < CLASSES; i++)
            sums[i] += block->runs * block->by_class[i];
    for (int i = 0; i < CLASSES; i++)
        total += sums[i];
    int used = snprintf(line, sizeof line, "edgesdk-window %" PRIu64, total);
    for (int i = 0; i < CLASSES; i++)
        used += snprintf(line + used, sizeof line - (size_t)used, " %" PRIu64, sums[i]);
    snprintf(line + used, sizeof line - (size_t)used, "\n");
    qemu_plugin_outs(line);
}

static void system_call(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                        uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != GETPGID || (a1 != OPEN && a1 != CLOSE))
        return;
    pthread_mutex_lock(&lock);
    if (a1 == OPEN) {
        for (struct block *block = blocks; block != NULL; block = block->next)
            block->runs = 0;
        counting = true;
    } else if (counting) {
        counting = false;
        tell();
    }
    pthread_mutex_unlock(&lock);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_vcpu_syscall_cb(id, system_call);
    return 0;
}
