/* A stream's configuration slots for accesses with SubstreamIDs (host/attachment_set.hpp,
 * caches/configuration_cache.hpp): a CMD_CFGI_STE passes over them unless a fill was noted.
 *
 * The guest changes the STE twice, each time followed by CMD_CFGI_STE. Two device threads fetch
 * the configuration of the one SubstreamID when its slot is empty. A slot holds a configuration,
 * by the number of the STE it was made from, or the number of its emptiness plus 100.
 *
 * Holds:  when a CMD_CFGI_STE is done, the slot does not hold what was made from an earlier STE.
 * Fails with each of:
 *   NO_NOTE         fills are not noted
 *   NOTE_FIRST      a fill is noted before its ticket is taken
 *   EMPTY_FIRST     slots are emptied before the note is taken
 */

#define EMPTIED 100

byte ste = 0;
byte slot = EMPTIED;
bool noted = false;
byte current = 0;       /* STEs before this one are done with */

proctype device(byte accesses) {
    byte ticket, decoded;
    do
    :: accesses > 0 ->
        accesses--;
        if :: slot < EMPTIED -> goto next :: else fi;   /* a configuration: used as it is */
#ifdef NOTE_FIRST
        noted = true;
#endif
        ticket = slot;                                  /* begin_fill() */
#ifndef NO_NOTE
#ifndef NOTE_FIRST
        noted = true;                                   /* note_substream() */
#endif
#endif
        decoded = ste;
        atomic {                                        /* publish() */
            if
            :: ticket >= EMPTIED && slot == ticket -> slot = decoded
            :: else
            fi
        };
next:
        ticket = 0; decoded = 0
    :: else -> break
    od
}

proctype control() {
    byte emptied = EMPTIED;
    bool take;
    do
    :: ste < 2 ->
        ste++;
#ifdef EMPTY_FIRST
        if
        :: noted -> emptied++; slot = emptied
        :: else
        fi;
        noted = false;
#else
        atomic { take = noted; noted = false };         /* take_substreams() */
        if
        :: take -> emptied++; slot = emptied
        :: else
        fi;
#endif
        current = ste;
        take = false
    :: else -> break
    od
}

/* At any time once a command is done. */
active proctype observer() {
    byte done, held;
    do
    :: atomic {
        done = current;
        held = slot;
        assert(held >= EMPTIED || held >= done);
        if :: done == 2 -> break :: else fi
    }
    od
}

init {
    atomic { run device(3); run device(2); run control() }
}
