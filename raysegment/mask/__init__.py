"""What `infer` writes, and how it is read again and shown.

Start with `store.py`: the mask, an OME-Zarr 0.5 label image, there once its header (`header.py`) is written. `field.py`
is what may lie beside it (class probabilities, uncertainty), `outputs.py` both, as one image's run writes them.
`coding.py` reads back what the numbers of any of them mean. `overview.py`, `preview.py` and `drawing.py` make pictures.
"""
