"""The log events of the product: level, keys and meaning; `midslice events` prints the table.

An event is the constant message of a log line; its values are in the keys. A test compares this
table with every call of a logger in the source.
"""

from typing import NamedTuple


class Event(NamedTuple):
    """One kind of log line; `level` is the most severe one that it has."""

    name: str
    level: str
    keys: tuple[str, ...]  # beside `event`, `time`, `level` and `logger`
    meaning: str


def _table(text: str) -> tuple[Event, ...]:
    rows = (line.split("|") for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(
        Event(name.strip(), level.strip(), tuple(keys.split()), meaning.strip())
        for name, level, keys, meaning in rows
    )


EVENTS = _table("""
# The node
node listening | info | ae_title port tls_port web_port pid | ready; the ports
node stopping | info | seconds | no new work begins; stopping may take `seconds`
node stopped | info | | all work was finished or given back
not stopped in order | error | error | one part failed to stop; the others were stopped
unhandled exception | critical | in_thread error | nothing caught it: report it
library message | warning | where text error left_out | \
    from a library such as pynetdicom; its text only where it is not about data sets
configuration applied | info | | read again after SIGHUP or `midslice reload`
configuration refused | error | error | the new file has a mistake; nothing changed
needs a restart | warning | key | read again; this key waits for a restart
node lost | error | node seconds jobs deliveries files | \
    another node on this storage gave no sign of life for so long; this one has taken over its work
clock was set | warning | seconds | every sweep runs at once; times may look wrong
sweep failed | error | sweep error | a periodic pass; it is tried again next time
file not read | error | file error | \
    a broken file in the storage folder at the start; it stays where it is

# Associations and instances
association accepted | info | \
    calling_ae called_ae address port contexts contexts_refused refused tls certificate | \
    a peer has connected; `refused` names contexts by SOP Class and transfer syntaxes, `tls` the \
    version, `certificate` the name in it
association rejected | warning | calling_ae called_ae address port reason | \
    a peer was turned away, with the reason
association ended | warning | \
    calling_ae called_ae address port how by reason instances | \
    released (info), aborted or dropped; by which side, why, after how many instances
associations not written yet | warning | reason | \
    the database takes no row: peers are let in all the same, and their rows follow
association not written | error | error | a row of the log of associations is missing: report it
certificate replaced | info | file | new files of `[tls]`, for new connections
certificate not replaced | error | file why | \
    the new files of `[tls]` or `[web]` are of no use; the old ones are in use
connections turned away | warning | address count | too many of this address, or in all, wait \
    to ask for an association; `count` since the last such line
request to store ended | warning | \
    calling_ae called_ae address how instances refused | by STOW-RS: released (then info), or the \
    client went away or was too slow, or the body is none; so many instances are stored, so many not
connection failed | error | address error | a connection broke before an association
instance stored | info | sop_instance_uid series_uid calling_ae | \
    on disk and indexed; Success was answered
instance refused | warning | sop_instance_uid calling_ae status why | \
    answered with a failure that the peer must correct
instance not kept | error | sop_instance_uid calling_ae reason error | \
    answered A700: disk or database; the peer tries again
unusual UID | warning | uid attribute | kept, although it breaks PS3.5 9.1

# Series
series complete | info | series_uid instances arrival jobs | \
    an arrival was closed; how many jobs it made
peer asked | info | series_uid destination instances missing | \
    the peer of `completion.ask` has so many instances of a series; so many have not come
peer not asked | warning | series_uid destination sentence | \
    it did not answer: the series is complete without it
asking failed | error | error | an error while asking; it is tried again
study fetched | info | destination study_uid instances failed how | \
    a destination was asked for a study and has sent it, by C-GET or C-MOVE
study not fetched | warning | destination study_uid instances failed how sentence | \
    not all of it has come; the sentence says why
arrival not closed | error | arrival error | \
    tried again in half a minute; after three times people are notified, and the page Now says so
own result came back | info | series_uid | kept, never processed
parts joined | info | series_uid senders instances | \
    slices that several peers brought form one stack
instances set aside | info | series_uid reasons | \
    localizers, dose pages and others in no stack; how many for which reason
series purged | info | series failed bytes | retention removed files; rows stay
series purged early | warning | series bytes free | \
    the disk is near its reserve: a series that was sent went before storage.keep_days
series not purged | warning | series_id error | its files could not be removed; tried again

# Jobs
job queued | info | job how derived_series_uid | new, or requested once more (`how`)
requeued job not compared | error | job error | it waits; its route is compared a second later
job running | info | job attempt | a worker has it
job paused | info | job | a more urgent one is made first, beside it
job resumed | info | job | the more urgent one is done
job succeeded | info | job derived_series_uid instances is_new | \
    the derived series is verified and kept
job refused | info | job reason | rightly not processed, with the reason code
job held | warning | job reason derived_series_uid | needs a person, with the reason code
job failed | error | job reason | the model or our code raised
job cancelled | info | job derived_series_uid | by a person, or replaced
job released | info | job | given back by a clean stop
received file damaged | warning | instance_uid | a received file is missing or has changed on \
    the disk; sent again, it is mended
job given back | warning | job why | \
    no room, memory, open files or database for a moment; tried again
jobs wait for room | warning | why | the disk is below its reserve: no job begins until it is not
jobs wait for a worker | warning | worker why | \
    the Ray cluster has none for the node yet, or was lost: no job begins until it has
part not drafted | warning | error | \
    a worker that helped with a long series has failed; the series is made without
worker is back | info | worker | jobs begin again
worker joined | info | worker pid machine | a machine of the Ray cluster has it
job not finished | error | job error | an error while handling a job; it runs again later
lease lost | warning | job delivery | another worker or node has it now
database replaced | critical | | \
    another SQLite file lies where the node's own was, or none: it ends (exit status 1); the next \
    start works with that file, and indexes what it lacks
lease not renewed | warning | job | the database was busy for a moment
queue not read | error | worker destination error | an error of the database; tried again

# Workers
worker started | info | worker pid | an inference process
worker died | warning | worker exit_code | by itself
worker killed | warning | worker reason | at a limit, or to cancel or stop
worker lost | warning | job reason state | what that did to its job
out of memory, limits lowered | warning | error limits | smaller batches, tiles or the CPU
processing failed | error | error frames | type and frames of an exception in a worker
pixels not decoded | warning | error | an installed decoder rejects an image; the job is held
object not made | warning | kind error | \
    the derived series is whole, but has no such object beside it
not generated ahead | warning | series_uid error | \
    slices of a series that arrives could not be generated ahead; its job begins from nothing
previews not written | warning | error | \
    the result is whole, but the page of its job has no pictures

# Deliveries
delivery sent | info | destination delivery instances | \
    a destination answered Success for every instance
object not taken | warning | destination delivery instances which | \
    the destination has the derived series, but not the objects beside it of these kinds
delivery confirmed | info | destination delivery instances | \
    the destination has proved that it keeps every instance
delivery not yet confirmed | warning | destination delivery sentence | \
    a report or a C-FIND does not name every instance; asked or sent again
delivery not confirmed | error | destination delivery | \
    neither a report nor C-FIND proves it; people are notified
delivery delayed | warning | destination delivery seconds | tried again after `seconds`
delivery held | error | destination delivery reason | \
    needs a person; a warning only where a mix-up holds it
deliveries released | info | destination before deliveries | \
    they were held without a destination, which is configured now
delivery given back | warning | destination delivery why | \
    the database was away or busy for a moment: sent on as soon as it is back
delivery not finished | error | delivery error | an error while handling a delivery; tried again
destination down | warning | destination | it does not answer; what is due waits
destination up | info | destination | it answers again

# Storage commitment
commitment asked | info | destination delivery instances transaction_uid | \
    the destination has taken the request on; its report is to come
commitment not asked | warning | destination delivery sentence | \
    it cannot be reached or refuses; asked again, or by C-FIND
commitment reported | info | \
    destination delivery calling_ae transaction_uid committed failed is_news | \
    a report of a destination came
commitment requested | info | calling_ae transaction_uid instances | a sender asks
commitment answered | info | calling_ae transaction_uid committed failed | it has its report
commitment answer delayed | warning | calling_ae transaction_uid | tried again
commitment not answered | error | calling_ae transaction_uid | \
    the report could not be delivered in time, or the sender refuses it
commitment refused | warning | calling_ae status transaction_uid | \
    a request or report that makes no sense, or for an unknown transaction
commitment request not kept | error | calling_ae error | the database; answered with a failure
commitment report not kept | error | calling_ae error | the database; answered with a failure
commitment not finished | error | delivery error | an error of the node; tried again

# Notices and the self-test
notice | warning | kind job derived_series_uid instances which series jobs deliveries | \
    a notice, also in the audit: a revision, or held work that prevents retention
notice sent | info | channel kind count | a notice went out through this channel
notice not sent | warning | channel kind count why | tried again until `notify.give_up_hours`
sender silent | warning | calling_ae | \
    a `[[sender]]` has sent nothing in hours in which it is expected to send
scrub found damage | warning | kind count series_uid | \
    kept files (received, derived) that are missing or have changed on the disk
certificate expires | warning | certificate file days | \
    within 30 days, within 7, or it has expired (`days` below 0)
revocation list expires | warning | certificate file days | \
    in the last quarter of its time, or it has expired; `certificate` is its authority
disk low | warning | free total | \
    below the reserve, or full within `notify.disk_days` at the present rate
request done | info | request kind ok | \
    a request made on a page or by a command, and whether it worked
request not done | error | request kind error | an error of the node while handling the request
self-test passed | info | selftest state | a synthetic series came through
self-test failed | error | selftest state sentence | with the sentence; its steps are kept

audit repository not reached | warning | reason | \
    messages wait in the database until it takes them; after 15 minutes a notice tells of it

# The web process
web process died | warning | exit_code | it was started again
web certificate replaced | info | | the web process starts again with the new one
any peer may send | warning | host | \
    any AE title from any network is let in: name `node.allowed_networks` or `allowed_ae_titles`
no user yet | warning | set_up_link | \
    nobody may log in: whoever opens the link makes the first administrator, once
log-in throttled | warning | address seconds | \
    too many wrong passwords from there (IPv6: its /64); it waits `seconds`
log-in provider not reached | warning | reason | \
    nobody can log in through `[web.oidc]` until it answers
log-in of provider refused | warning | reason | \
    its answer, or that of a browser in its name, did not prove who logs in
request failed | error | error | an error in the web process, with its frames
request not answered | warning | error | the database, for a page or a program
live stream not read | warning | error | the database; the next look comes
live stream not checked | warning | error | \
    the database: whether its visitor is still logged in is asked again
question failed | error | error | an error while files were tried on the rules
question not answered | warning | exit_code | that process died or took too long

# Training
series passed over | warning | reason | it cannot be used for training
training resumed | info | step | from its checkpoint
""")
