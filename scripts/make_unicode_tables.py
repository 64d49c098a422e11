#!/usr/bin/env python3
"""Writes src/tokenizer/unicode_tables.cc from the Unicode character database.

Usage: pip install unicodedata2==16.0.0 && python3 scripts/make_unicode_tables.py

The version is fixed: it is the one that the regular-expression engine of Hugging Face's tokenizers
(oniguruma) knows, so that both cut the same text into the same pieces. White space is the
White_Space property, which unicodedata does not hold; it has not changed since Unicode 6.3.
"""
import pathlib
import sys

import unicodedata2 as ucd

VERSION = "16.0.0"
OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)
NFC_FLAG = 8
WHITE_SPACE = (set(range(0x09, 0x0E)) | {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F,
                                         0x3000} | set(range(0x2000, 0x200B)))
HANGUL = range(0xAC00, 0xD7A4)


def code_points():
    return (c for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def main():
    if ucd.unidata_version != VERSION:
        sys.exit(f"needs unicodedata2=={VERSION}, found {ucd.unidata_version}")
    compositions, decompositions, combining = [], [], []
    for c in code_points():
        if ucd.combining(chr(c)):
            combining.append((c, ucd.combining(chr(c))))
        if c in HANGUL:
            continue  # Composed and taken apart by arithmetic.
        full = ucd.normalize("NFD", chr(c))
        if full != chr(c):
            decompositions.append((c, [ord(x) for x in full]))
        pair = ucd.decomposition(chr(c)).split()
        if len(pair) == 2 and not pair[0].startswith("<") and ucd.normalize("NFC", chr(c)) == chr(c):
            compositions.append((int(pair[0], 16), int(pair[1], 16), c))
    compositions.sort()
    seconds = {second for _, second, _ in compositions}
    seconds |= set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))

    classes = bytearray(0x110000)
    for c in code_points():
        category = ucd.category(chr(c))[0]
        value = LETTER if category == "L" else NUMBER if category == "N" else OTHER
        if c in WHITE_SPACE:
            value = NEWLINE if c in (0x0A, 0x0D) else SPACE
        if ucd.combining(chr(c)) or c in seconds or ucd.normalize("NFC", chr(c)) != chr(c):
            value |= NFC_FLAG
        classes[c] = value

    pages, index = [], []
    for start in range(0, 0x110000, 256):
        page = bytes(classes[start:start + 256])
        if page not in pages:
            pages.append(page)
        index.append(pages.index(page))
    assert len(pages) <= 256

    out = []

    def array(declaration, values, per_line):
        out.append(f"const {declaration} = {{")
        for i in range(0, len(values), per_line):
            out.append("    " + " ".join(f"{v}," for v in values[i:i + per_line]))
        out.append("};\n")

    out.append(f"// Unicode {VERSION} character data. Made by scripts/make_unicode_tables.py; not edited by hand.")
    out.append('#include "tokenizer/unicode_tables.h"\n')
    out.append("// clang-format off")
    out.append("namespace tessera::unicode {\n")
    array("uint8_t kPageIndex[0x1100]", index, 32)
    array(f"uint8_t kPages[{len(pages) * 256}]", [v for p in pages for v in p], 32)
    array(f"CombiningClass kCombiningClasses[{len(combining)}]",
          [f"{{0x{c:X}, {v}}}" for c, v in combining], 8)
    out.append(f"const int64_t kCombiningClassCount = {len(combining)};\n")
    offset, entries, data = 0, [], []
    for c, full in decompositions:
        entries.append(f"{{0x{c:X}, {offset}, {len(full)}}}")
        data += [f"0x{x:X}" for x in full]
        offset += len(full)
    array(f"Decomposition kDecompositions[{len(entries)}]", entries, 6)
    out.append(f"const int64_t kDecompositionCount = {len(entries)};\n")
    array(f"uint32_t kDecompositionData[{len(data)}]", data, 12)
    array(f"Composition kCompositions[{len(compositions)}]",
          [f"{{0x{a:X}, 0x{b:X}, 0x{c:X}}}" for a, b, c in compositions], 4)
    out.append(f"const int64_t kCompositionCount = {len(compositions)};\n")
    out.append("}  // namespace tessera::unicode")
    target = pathlib.Path(__file__).resolve().parent.parent / "src/tokenizer/unicode_tables.cc"
    target.write_text("\n".join(out) + "\n")
    print(f"{target}: {len(pages)} pages, {len(combining)} combining classes, "
          f"{len(entries)} decompositions, {len(compositions)} compositions")


if __name__ == "__main__":
    main()
