"""What processes share: channels, the board, latches, and the records that cross them.

Code here runs in every process, so it imports little and knows neither supervisors nor
workers.  Two ways lead from one process to another, and no third:

* A **channel** is a SEQPACKET pair: the kernel frames and orders its messages, its end is
  EOF, and each end has an open file description of its own, so that no peer can change the
  flags of ours (an eventfd's O_NONBLOCK is shared by all who hold it).
* The **board** is memory that one process writes and the others can only read.

``launch`` is what supervisor and worker say to each other, ``requests`` what clients may say;
``rundir`` is where they find the supervisor; ``forks`` closes copies that would hide a death.

PostgreSQL's clients write requests into the slots that its postmaster reads, under a lock
the postmaster must not take.  Here a request is a message: there is no lock, no claim and
no half-written slot to guard against.
"""
