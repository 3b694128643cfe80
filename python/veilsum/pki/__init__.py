"""The consortium's certificates: a small authority, leaves for its members, the roster.

A member has two keys. The TLS key (ECDSA P-256) carries its connections and names it by a
SAN URI; the signing key (Ed25519) signs protocol messages and never terminates TLS, so that
a front end that holds the one cannot speak for the other.
"""
