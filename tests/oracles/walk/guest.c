/* Bare-metal arm64 program: lets the processor's own table walker translate a batch of addresses.
 *
 * It runs at EL3 without an MMU of its own. For each tree of the batch it writes the registers of
 * the translation regimes, throws away what the TLBs hold, and then runs one AT instruction per
 * address; PAR_EL1 goes into the batch. A walk that reads from where no memory is raises an
 * exception: its syndrome goes into the batch instead. */
#include "guest.h"

#define WRITE(reg, value) __asm__ volatile("msr " reg ", %0" ::"r"((uint64_t)(value)))

/* Written by the exception vector below. */
volatile uint64_t syndrome;

static void start_tree(const struct oracle_tree* t) {
    WRITE("hcr_el2", t->hcr);
    WRITE("vtcr_el2", t->vtcr);
    WRITE("vttbr_el2", t->vttbr);
    if (t->el2) {
        WRITE("tcr_el2", t->tcr);
        WRITE("ttbr0_el2", t->ttbr0);
        WRITE("s3_4_c2_c0_1", t->ttbr1); /* TTBR1_EL2 */
        WRITE("mair_el2", t->mair);
        WRITE("sctlr_el2", t->sctlr);
    } else {
        WRITE("sctlr_el2", t->sctlr_el2);
        WRITE("tcr_el1", t->tcr);
        WRITE("ttbr0_el1", t->ttbr0);
        WRITE("ttbr1_el1", t->ttbr1);
        WRITE("mair_el1", t->mair);
        WRITE("sctlr_el1", t->sctlr);
    }
    __asm__ volatile("isb\n tlbi alle1\n tlbi alle2\n dsb sy\n isb" ::: "memory");
}

/* AT by its encoding, so that every assembler knows it: op1, CRm, op2. */
#define AT(op1, crm, op2, address)                                                                 \
    __asm__ volatile("sys #" #op1 ", c7, " #crm ", #" #op2 ", %0" ::"r"(address) : "memory")

static void walk(struct oracle_walk* w) {
    const uint64_t address = w->address;
    uint64_t par;
    syndrome = 0;
    switch (w->at) {
    case AT_S1E1R:
        AT(0, c8, 0, address);
        break;
    case AT_S1E1W:
        AT(0, c8, 1, address);
        break;
    case AT_S1E0R:
        AT(0, c8, 2, address);
        break;
    case AT_S1E0W:
        AT(0, c8, 3, address);
        break;
    case AT_S1E1RP:
        AT(0, c9, 0, address);
        break;
    case AT_S1E1WP:
        AT(0, c9, 1, address);
        break;
    case AT_S12E1R:
        AT(4, c8, 4, address);
        break;
    case AT_S12E1W:
        AT(4, c8, 5, address);
        break;
    case AT_S12E0R:
        AT(4, c8, 6, address);
        break;
    case AT_S12E0W:
        AT(4, c8, 7, address);
        break;
    case AT_S1E2R:
        AT(4, c8, 0, address);
        break;
    case AT_S1E2W:
        AT(4, c8, 1, address);
        break;
    default:
        break;
    }
    __asm__ volatile("isb\n mrs %0, par_el1" : "=r"(par)::"memory");
    w->par = par;
    w->esr = (uint32_t)syndrome;
}

/* Ends the emulator with semihosting's SYS_EXIT (ADP_Stopped_ApplicationExit). */
static void leave(uint64_t status) {
    const uint64_t block[2] = {0x20026, status};
    register uint64_t x0 __asm__("x0") = 0x18;
    register const uint64_t* x1 __asm__("x1") = block;
    for (;;)
        __asm__ volatile("hlt #0xf000" ::"r"(x0), "r"(x1) : "memory");
}

void run_batch(void) {
    struct oracle_batch* batch = (struct oracle_batch*)(uint64_t)ORACLE_BATCH;
    const struct oracle_tree* trees = (const struct oracle_tree*)batch->trees_at;
    struct oracle_walk* walks = (struct oracle_walk*)batch->walks_at;
    uint64_t done = 0;
    /* NS, RW, HCE; PAN is what AT S1E1RP and S1E1WP ask for. */
    WRITE("scr_el3", 1u << 10 | 1u << 8 | 1u << 0 | 0x30);
    __asm__ volatile("msr s0_0_c4_c1_4, xzr"); /* MSR PAN, #1 */
    for (uint64_t t = 0; t < batch->trees; ++t) {
        const uint64_t end = done + trees[t].walks;
        if (!trees[t].skip) {
            syndrome = 0;
            start_tree(&trees[t]);
            if (syndrome != 0) leave(1); /* a register that this processor lacks */
            while (done < end)
                walk(&walks[done++]);
        }
        done = end;
    }
    batch->walks_done = done;
    leave(0);
}

/* An exception: its syndrome is noted, and the program goes on behind the instruction. */
__asm__(".pushsection .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "    adr x0, vectors\n"
        "    msr vbar_el3, x0\n"
        "    adrp x0, stack_top\n"
        "    add sp, x0, :lo12:stack_top\n"
        "    isb\n"
        "    bl run_batch\n"
        "1:  b 1b\n"
        "    .balign 2048\n"
        "vectors:\n"
        "    .rept 4\n"
        "    .balign 128\n"
        "    b 2f\n"
        "    .endr\n"
        "    .balign 128\n"
        "    b 2f\n" /* synchronous, current level with SP_ELx */
        "    .balign 1024\n"
        "2:  stp x0, x1, [sp, #-16]!\n"
        "    mrs x0, esr_el3\n"
        "    adrp x1, syndrome\n"
        "    str x0, [x1, :lo12:syndrome]\n"
        "    mrs x0, elr_el3\n"
        "    add x0, x0, #4\n"
        "    msr elr_el3, x0\n"
        "    ldp x0, x1, [sp], #16\n"
        "    eret\n"
        ".popsection\n");
