"""Answers that were not made by the code under test, and what they are answers to."""

from __future__ import annotations

KEY = bytes.fromhex("fcef57c115f58a84fb99d7ecaca65463605f450bb04e8b3b7378cd0aad3ba38b")
STREAM = 1
# Width in bits -> the first elements of the stream, and the first 16 hex digits of SHA-256
# over its first 1024 elements as 8-byte little-endian words. Made with independent ciphers
# (tests/reference).
CHACHA20 = {
    16: ((0x7E72, 0x2585, 0x9B9F, 0x667), "d7527d1e93d0b536"),
    22: ((0x57E72, 0x2E7C96, 0x106679, 0x177246), "21b39de135a8f345"),
    32: ((0x25857E72, 0x6679B9F, 0xA15DC919, 0x29D8D3BB), "828e34af7fdb249f"),
    33: ((0x125857E72, 0x8333CDCF, 0xE8577246, 0x1A53B1A77), "728eaf96e6552790"),
    64: (
        (0x6679B9F25857E72, 0x29D8D3BBA15DC919, 0x7315F9ED0B17324D, 0x7C49DEB2BEAD2548),
        "01e7b3cb60e1e730",
    ),
}
AES256CTR = {
    16: ((0x14AA, 0x4195, 0xD0FF, 0x4C79), "bec70e6317137967"),
    22: ((0x1514AA, 0x3FD06, 0x24C79D, 0x1AB0A), "5ba5409021ff11f5"),
    32: ((0x419514AA, 0x4C79D0FF, 0x1206AC2A, 0xD47706C1), "0fc064e7e62e5c8c"),
    33: ((0x1419514AA, 0x1263CE87F, 0x4481AB0A, 0x3A8EE0D8), "cc20004038ea7c5c"),
    64: (
        (0x4C79D0FF419514AA, 0xD47706C11206AC2A, 0xC3C4BA2D06EE8E21, 0xCEAE5BBDDE61F81E),
        "0988af4f39ab98cf",
    ),
}
# Shares 1 to 5, threshold 3, of the secret 00..1f; an independent implementation agrees.
SHARES = (
    "6f8faa393e13407e33efe08e003c57930d60b4d248ce5cacd754cf15a3e4e24f",
    "0f8ac91e9f6f00b0712b5f7a2ce0b07f0a0c2c437130b814c3b2f3e44e1a7169",
    "60046124a57946c94acdb5ff20d1e9e3177d8a822debf2af0cff26eaf1e38d39",
    "5d4cf99f8fcb227dc1f3a105afea4646a7d2a1f8ac12a7c1bb8fc66d0fc19fab",
    "32c251a5b5dd6404fa154b80a3db1fdabaa30739f0c9ed7a74c21363b03863fb",
)
# What follows a public key: blocks that are rotated -> the first 16 hex digits of SHA-256 over the
# rotated floats and over the inverse in doubles; and the blocks that a subsample keeps, 16 of 64.
# Made by tests/reference.
PUBLIC_KEY = bytes(range(1, 9))
ROTATED = {
    64: ("05096317aea7ebb6", "bd274128f05742c9"),
    1024: ("e5f7e75813b2ae61", "d7560c7487edab72"),
    4096: ("a7ea5695c8d42241", "bddb5f06bda8e8fb"),
}
COORDINATES = 5376  # a tile and parts of one
KEPT = (1, 6, 10, 12, 15, 19, 26, 34, 35, 38, 39, 41, 46, 52, 57, 63, 66, 70, 72, 75, 79)

# (bits, rotated block, generator) -> first 16 hex digits of SHA-256 over the words of a masked
# upload. Made by tests/reference.
UPLOADS = {
    (22, 0, "chacha20"): "d625b9e1abfa4c0d",
    (33, 0, "aes256ctr"): "5143321d79587c93",
    (22, 4096, "aes256ctr"): "fb028eae12fb5dff",
    (33, 1024, "chacha20"): "4e132169507fe842",
}

# Codec -> (steps per unit, limit, first 16 hex digits of SHA-256 over the chunks of sample 1).
# The bytes were made from docs/format.md without the code under test.
ENCODED: dict[str, tuple[float, float, str]] = {
    "f16": (0.0, 0.0, "c6e647e7c2b23203"),
    "bf16": (0.0, 0.0, "401fdf2f471d17db"),
    "int8": (0.0, 0.0, "b02294d40cd01f00"),
    "int8/b32/f16": (0.0, 0.0, "ba7db4d60c354965"),
    "int4": (0.0, 0.0, "151375e882c177ad"),
    "nf4": (0.0, 0.0, "442f7c0fec269171"),
    "fp4": (0.0, 0.0, "27fde1bf82d3b578"),
    "fp8_e4m3": (0.0, 0.0, "3b4b492b27dc25b3"),
    "fp8_e5m2/raw": (0.0, 0.0, "8339795120b4195e"),
    "sign": (0.0, 0.0, "973abc88d09dd0db"),
    "topk": (0.0, 0.0, "146acf84f4ea80e3"),
    "topk/d10/f16": (0.0, 0.0, "42fea712baefe885"),
    "eden1": (0.0, 0.0, "9edcced61dd73cd3"),
    "eden3": (0.0, 0.0, "91ac57793a080e11"),
    "eden4": (0.0, 0.0, "9a90f37ae630b570"),
    "ring13": (4095.0, 1.0, "d4fe9ef384658482"),
    "ring22": (32767.0, 1.0, "5bd7652e0e834156"),
}
