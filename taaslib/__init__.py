"""TAAS: a rendezvous relay for hidden servers and mobile clients.

Read the files in this order; it is the journey of one connection.

    paper: pure, no socket, no clock, no file
      outcomes        the ways an exchange, a lease, a leg or a pair can end
      names           Host -> registrar, label or stranger
      http1           bytes -> Request, Response -> bytes
      clienthello     a TLS client's first octets -> the server name it asks for
      authorization   the TOTP header -> a Claim -> the time step that it proves
      proxy2          who visits, told in front of its octets
      guesses         who sent too many wrong codes, and waits
      rendezvous      who meets whom
      limits          how much of everything
      recorder        what is known of each pair, and whose doing its end was
      config          the text of taas.ini -> Config
    plumbing: descriptors, time, disk
      loop            ready descriptors and due timers
      listener        accepts until the queue is empty
      stream          bytes in plain or through TLS
      sockets         what is asked of the kernel about a TCP socket
      pump            one direction of bytes: spliced, or through a ring
      store           credentials, spent codes, sticky ports in sqlite3
      ownership       whose files they are
      journal         log lines
      supervisor      signals, what systemd is told, where a stalled loop stands
    the house: our words joined to the plumbing
      frontdoor       one HTTPS exchange
      registrar       PUT /register/LABEL, GET /pairings/LABEL
      redirector      307 or 503
      leases          ports p and q
      lobby           legs wait, are paired, are relayed
      relay           a live pair
      trial           a pair whose responder may be dead
    composition
      startup         certificates, database, log, the user to become
      service         builds it all

Glossary.  *Hidden server*: behind a NAT, wants to be reached.  *Mobile client*: wants to reach it.
*Label*: the name they meet under.  *Credential*: an ID and its TOTP secret.  *Claim*: an ID with a code.
*Responder*: a hidden server's waiting connection; *initiator*: a mobile client's; *leg*: either.
*Lease*: an open port p (for one responder) or q (for a label's initiators).  *Pairing*: two legs meet;
*relay*: octets are copied between them; *pump*: one direction of it.  *Outcome*: how something ended.
"""

__version__ = "0.5.0"
