/* Guards and CMD_SYNC (control/quiescence.hpp) with membarrier_quiescence, and what a port keeps
 * between guards.
 *
 * The device thread's stores are plain: they wait in a store buffer, in order, until they drain or
 * a barrier makes them. The control side and the guest's loads see memory. A membarrier makes the
 * device thread pass a full barrier: its buffer drains at one moment during the call.
 *
 * The guest takes page after page away: it changes the tables, invalidates, and waits for the
 * CMD_SYNC. An invalidation by address empties the TLB's entry; one by ASID and the like changes
 * the context's generation, which the port keeps a copy of until the change epoch tells it to look
 * again.
 *
 * Holds:  no page is touched after the CMD_SYNC that followed its invalidation; every CMD_SYNC
 *         completes although nobody asks (a guard that closes tells).
 * Fails with each of:
 *   NO_MEMBARRIER       start() does not make device threads pass a barrier
 *   NO_WAIT             CMD_SYNC completes without looking at guards
 *   LOOK_FIRST          start() looks at the guards first and asks to be told afterwards: never ends
 *   NO_TELL             a guard that closes tells nobody: never ends
 *   PLAIN_UNPARK        unpark() is a plain store
 *   NO_EPOCH            a port trusts its copy of the generation without the change epoch
 *   EPOCH_FIRST         an invalidation changes the epoch before the generation
 *   EPOCH_READ_LAST     a port that looks again reads the generation before the epoch
 */

#define ROUNDS 2

/* What the guest and the caches hold. */
byte page = 1;              /* the page that the tables map, by number */
byte revoked = 0;           /* pages up to this one are the guest's again */
byte cached = 1;            /* the TLB's entry: the page, 0 = none */
byte cached_generation = 0; /* the entry's tag */
byte generation = 0;        /* of the context */
byte epoch = 0;
byte fills_from = 0;         /* the TLB's own epoch: what fills ask, see tlb_entry.pml */

/* The guard slot. The word: 1 while a guard is open; and 16 for each that has closed while somebody
 * waited. */
byte word = 0;
#define OPEN(w) ((w) % 16)
#define CLOSES(w) ((w) / 16)
bool parked = false;
byte attention = 0;     /* how many wait for the guard that is open */

bool told = false;          /* somebody has asked the control side to look */
bool done = false;

/* The store buffer of the device thread: values of the word, or of `parked` with PLAIN_UNPARK. */
#define UNPARKED 100
chan buffer = [4] of { byte };
byte value;

inline drain_one() {
    buffer ? value;
    if :: value == UNPARKED -> parked = false
       :: else -> word = value
    fi
}
inline drain() {
    do :: nempty(buffer) -> drain_one() :: empty(buffer) -> break od
}

active proctype store_buffer() {
end:
    do
    :: atomic { nempty(buffer) -> drain_one() }
    :: done && empty(buffer) -> break
    od
}

active proctype device() {
    byte own = 0;               /* the word that this thread has stored last */
    byte kept_generation = 0;   /* the port's copy, and the epoch it is of */
    byte kept_epoch = 0;
    byte found, seen, ticket;
    byte guards = 0;
    do
    :: guards < 3 ->
        guards++;
        /* open() */
        own++;
        buffer ! own;
        /* translate(): the port's copy, then the TLB, then a walk. */
#ifndef NO_EPOCH
        seen = epoch;
        if
        :: seen != kept_epoch ->
#ifdef EPOCH_READ_LAST
            kept_generation = generation;
            kept_epoch = epoch
#else
            kept_epoch = seen;
            kept_generation = generation
#endif
        :: else
        fi;
#endif
        atomic {                                    /* one entry, see tlb_entry.pml */
            if
            :: cached != 0 && cached_generation == kept_generation -> found = cached
            :: else -> found = 0
            fi
        };
        if
        :: found == 0 ->
            ticket = fills_from;
            found = page;
            atomic {
                if
                :: fills_from == ticket -> cached = found; cached_generation = kept_generation
                :: else
                fi
            }
        :: else
        fi;
        /* The page is touched, twice, at any moment until the guard closes. */
        assert(found > revoked);
        assert(found > revoked);
        /* close() */
        own--;
        buffer ! own;
#ifndef NO_TELL
        if
        :: attention != 0 ->
            own = own + 16;
            buffer ! own;
            atomic { drain(); told = true }         /* look_again() is a barrier */
        :: else
        fi;
#endif
        if                                          /* perhaps park() for a while */
        :: true ->
            atomic { drain(); parked = true };      /* sequentially consistent */
#ifdef PLAIN_UNPARK
            buffer ! UNPARKED
#else
            atomic { drain(); parked = false }      /* an exchange, and a fence */
#endif
        :: true
        fi
    :: else -> break
    od;
    done = true
}

/* Another device's port, which shares the TLB. It has looked at everything afresh. */
active proctype other_port() {
    atomic { cached = page; cached_generation = generation };
    atomic { cached = page; cached_generation = generation }
}

active proctype control() {
    byte round = 0;
    byte waited_for, now;
    do
    :: round < ROUNDS ->
        round++;
        page = round + 1;                           /* the guest changes its tables */
        if
        :: fills_from++; cached = 0                 /* TLBI by address */
        :: true ->                                  /* TLBI by ASID */
#ifdef EPOCH_FIRST
            epoch++;
            generation++
#else
            generation++;
            epoch++
#endif
        fi;
        /* start(): a port that is parked has no guard open. */
        waited_for = 0;
        if :: parked -> goto waited :: else fi;
#ifndef LOOK_FIRST
        attention++;
#endif
#ifndef NO_MEMBARRIER
        atomic { drain() }
#endif
        waited_for = word;
#ifdef LOOK_FIRST
        if :: OPEN(waited_for) != 0 -> attention++ :: else -> waited_for = 0 fi;
#else
        if :: OPEN(waited_for) == 0 -> attention--; waited_for = 0 :: else fi;
#endif
#ifndef NO_WAIT
        /* finished(): looked at now, and again when told. */
        do
        :: waited_for == 0 -> break
        :: else ->
            now = word;
            if
            :: OPEN(now) == 0 || CLOSES(now) != CLOSES(waited_for) ->
                attention--;
                waited_for = 0
            :: else -> told; told = false
            fi
        od;
#endif
waited:
        revoked = round                             /* CMD_SYNC has completed */
    :: else -> break
    od
}
