"""The table of formats of pictures and sounds, and names for the content of other files.

Folders, archives and globs are searched for the suffixes of the table. What a file holds is decided by its
content, whatever its suffix.
"""

import os
import re

# Pillow's name of a picture format -> its suffixes. Its other decoders are not used: some start programs.
PICTURES = {
  'PNG': '.png .apng',
  'JPEG': '.jpg .jpeg .jpe .jfif .mpo',
  'GIF': '.gif',
  'WEBP': '.webp',
  'BMP': '.bmp',
  'TIFF': '.tif .tiff',
  'AVIF': '.avif',
  'JPEG2000': '.jp2 .j2k',
  'PPM': '.ppm .pgm .pbm .pnm',
  'ICO': '.ico',
  'PSD': '.psd',
  'QOI': '.qoi',
  'SGI': '.sgi',
  'DDS': '.dds',
  'PCX': '.pcx',
  'TGA': '.tga',
}
# The same for libsndfile.
SOUNDS = {
  'WAV': '.wav',
  'FLAC': '.flac',
  'OGG': '.ogg .oga .opus',
  'MP3': '.mp3',
  'AIFF': '.aiff .aif .aifc',
  'AU': '.au .snd',
  'CAF': '.caf',
  'W64': '.w64',
  'RF64': '.rf64',
  'VOC': '.voc',
  'NIST': '.sph',
}
SUFFIXES = {
  modality: tuple(' '.join(table.values()).split())
  for modality, table in (('image', PICTURES), ('audio', SOUNDS))
}
# Media that are left out of folders, and that is said.
UNREADABLE = {
  modality: tuple(suffixes.split())
  for modality, suffixes in (
    ('image', '.heic .heif .svg .eps .ai .pdf .jxl .exr .hdr .raw .cr2 .cr3 .nef .arw .dng .xcf'),
    ('audio', '.m4a .m4b .aac .wma .amr .ape .wv .mid .midi .ac3 .mka .mp4 .mov .mkv .avi .webm'),
  )
}
NAMES = {'image': 'picture', 'audio': 'sound'}
CONVERT = {
  'image': 'convert it to .png or .jpg, as in: magick {name} picture.png',
  'audio': 'convert it to .wav or .flac, as in: ffmpeg -i {name} sound.wav',
}
# Start of a file, as a regular expression -> (what it is, modality or '')
CONTENTS = tuple(
  (re.compile(start, re.DOTALL), name, modality)
  for start, name, modality in (
    (rb'\x89PNG', 'a PNG picture', 'image'),
    (rb'\xff\xd8\xff', 'a JPEG picture', 'image'),
    (rb'GIF8', 'a GIF picture', 'image'),
    (rb'II\*\0|MM\0\*', 'a TIFF picture', 'image'),
    (rb'RIFF....WEBP', 'a WebP picture', 'image'),
    (rb'8BPS', 'a Photoshop picture', 'image'),
    (rb'....ftypavi[fs]', 'an AVIF picture', 'image'),
    (rb'....ftyp(hei|hev|mif1|msf1)', 'a HEIC picture', 'image'),
    (rb'\xff\x0a|\0\0\0\x0cJXL ', 'a JPEG XL picture', 'image'),
    (rb'(\xef\xbb\xbf)?\s*(<\?xml.{0,400}?)?<svg', 'an SVG drawing', 'image'),
    (rb'%!PS', 'a PostScript drawing', 'image'),
    (rb'RIFF....WAVE|RF64', 'a WAV sound', 'audio'),
    (rb'fLaC', 'a FLAC sound', 'audio'),
    (rb'OggS', 'an Ogg sound', 'audio'),
    (rb'ID3|\xff[\xfb\xf3\xf2]', 'an MP3 sound', 'audio'),
    (rb'FORM....AIF', 'an AIFF sound', 'audio'),
    (rb'MThd', 'a MIDI file, which has notes and no sound', 'audio'),
    (rb'\xff[\xf1\xf9]', 'an AAC sound', 'audio'),
    (rb'....ftyp', 'an MPEG-4 sound or video (AAC)', 'audio'),
    (rb'\x30\x26\xb2\x75\x8e\x66\xcf\x11', 'a Windows Media sound or video (WMA)', 'audio'),
    (rb'\x1aE\xdf\xa3', 'a Matroska or WebM video', 'audio'),
    (rb'#!AMR', 'an AMR sound', 'audio'),
    (rb'%PDF', 'a PDF document', ''),
    (rb'PK[\x03\x05]', 'a zip archive', ''),
    (rb'PAR1', 'a Parquet file', ''),
    (rb'ARROW1', 'an Arrow file', ''),
    (rb'\x1f\x8b', 'a gzip file', ''),
    (rb'BZh[1-9]1AY', 'a bzip2 file', ''),
    (rb'\xfd7zXZ', 'an xz file', ''),
    (rb'\x28\xb5\x2f\xfd', 'a Zstandard file', ''),
    (rb'7z\xbc\xaf', 'a 7-Zip archive', ''),
    (rb'Rar!', 'a RAR archive', ''),
    (rb'.{257}ustar', 'a tar archive', ''),
    (rb'\x93NUMPY', 'a NumPy array', ''),
    (rb'\x89HDF', 'an HDF5 file', ''),
    (rb'SQLite format 3', 'an SQLite database', ''),
    (rb'version https://git-lfs', 'a Git LFS pointer: run `git lfs pull` for the content', ''),
    (rb'(?i:\s*<(!doctype )?html)', 'a web page', ''),
  )
)
HEAD = 512  # bytes that tell what a file is


def describe_content(head: bytes) -> tuple[str, str]:
  """Return (what a file is, as in 'a PNG picture', its modality) by its first HEAD bytes, or ('', '')."""
  return next(((name, modality) for start, name, modality in CONTENTS if start.match(head)), ('', ''))


def is_media_name(name: str, suffixes: tuple[str, ...]) -> bool:
  """Return whether a file of a folder or archive is visible and has one of the suffixes."""
  parts = name.split('/')
  hidden = any(part.startswith('.') or part == '__MACOSX' for part in parts)
  return not hidden and os.path.splitext(parts[-1])[1].lower() in suffixes
