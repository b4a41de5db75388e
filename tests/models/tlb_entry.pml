/* One entry of set_associative (caches/set_associative.hpp): look-ups, fills and an invalidation
 * at the same time. Every step below is one access of the code to memory that is shared.
 *
 * Two pages, 0 and 1, of one context share the entry. A translation is a number: 2 * page + 1 for
 * what the tables said at first, 0 for what they say once the guest has changed them. The guest
 * changes both and then invalidates page 0.
 *
 * Holds:  a look-up gives the translation of the page it was asked for, never a mix of two;
 *         one that begins after the invalidation has returned does not give page 0's old one.
 * Fails with each of:
 *   NO_VERSION_CHECK    a look-up does not look at the state again
 *   NO_VERSION_STEP     a fill puts the same version back
 *   NO_EPOCH_CHECK      a fill does not ask whether an invalidation began since its ticket
 *   NO_REQUEST          an invalidation passes over an entry that is being filled
 */

#define EMPTY 0         /* tags; see `filling` and `filling_in_vain` in the code */
#define FILLING 1
#define FILLING_IN_VAIN 2
#define TAG 3           /* of the one context */

#define STATE(t, v) ((t) * 16 + (v))
#define TAG_OF(s) ((s) / 16)
#define VERSION_OF(s) ((s) % 16)

byte state = STATE(EMPTY, 0);
byte key = 9;           /* the page that the entry is of */
byte distance = 0;      /* two words of data, which must be of one fill */
byte output = 0;
byte epoch = 0;
bool changed = false;   /* the guest's tables */
bool invalidated = false;

inline old_translation(page, into) { into = 2 * page + 1 }

proctype filler(byte fills) {
    byte page, ticket, walked, before, version, after;
    do
    :: fills > 0 ->
        fills--;
        if :: page = 0 :: page = 1 fi;
        ticket = epoch;                         /* begin_fill() */
        if                                      /* the walk */
        :: changed -> walked = 0
        :: else -> old_translation(page, walked)
        fi;
        before = state;
        version = VERSION_OF(before);
        if :: TAG_OF(before) == FILLING || TAG_OF(before) == FILLING_IN_VAIN -> goto dropped
           :: else
        fi;
        atomic {                                /* compare and exchange */
            if :: state == before -> state = STATE(FILLING, version)
               :: else -> goto dropped
            fi
        };
        after = before;
#ifdef NO_EPOCH_CHECK
        if
        :: true ->
#else
        if
        :: epoch == ticket ->
#endif
            key = page;
            distance = walked;
            output = walked;
#ifdef NO_VERSION_STEP
            after = STATE(TAG, version)
#else
            after = STATE(TAG, version + 1)
#endif
#ifndef NO_EPOCH_CHECK
        :: else
#endif
        fi;
        atomic {
            if :: state == STATE(FILLING, version) -> state = after; goto dropped
               :: else
            fi
        };
        state = STATE(EMPTY, version + 1);
dropped:
        page = 0; ticket = 0; walked = 0; before = 0; version = 0; after = 0
    :: else -> break
    od
}

proctype reader() {
    byte page = 0, seen, d, o, old;
    bool late;
    late = invalidated;
    seen = state;
    if :: TAG_OF(seen) != TAG -> goto missed :: else fi;
    if :: key != page -> goto missed :: else fi;
    d = distance;
    o = output;
#ifndef NO_VERSION_CHECK
    if :: state != seen -> goto missed :: else fi;
#endif
    old_translation(page, old);
    assert(d == o);                             /* not torn */
    assert(d == 0 || d == old);                 /* nor another page's */
    assert(!(late && page == 0 && d == old));
missed:
    skip
}

/* The guest's change, then invalidate() with a scope that covers page 0. */
proctype invalidator() {
    byte seen, then, held;
    changed = true;
    epoch++;
    seen = state;
    do
    :: TAG_OF(seen) == EMPTY || TAG_OF(seen) == FILLING_IN_VAIN -> break
    :: else ->
        then = STATE(EMPTY, VERSION_OF(seen));
        if
        :: TAG_OF(seen) == FILLING ->
#ifdef NO_REQUEST
            break;
#endif
            then = STATE(FILLING_IN_VAIN, VERSION_OF(seen))
        :: else ->
            held = key;
            if                                  /* not covered, if that was of this fill */
            :: held != 0 -> if :: state == seen -> break :: else -> seen = state; goto again fi
            :: else
            fi
        fi;
        atomic {
            if :: state == seen -> state = then; break
               :: else -> seen = state
            fi
        };
again:
        skip
    od;
    invalidated = true
}

init {
    atomic {
        run filler(2);
        run filler(1);
        run reader();
        run invalidator()
    }
}
