"""Guests that are nothing but load: a kernel of a few hundred bytes that spins, wakes and counts, made here.

``assembler`` has two instruction sets behind one set of words, ``program`` what such a guest does, ``guest`` what it is
told and what it said. Knows no host.
"""
