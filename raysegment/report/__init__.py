"""Pages that people read: one HTML file that needs no network, no script and no other file.

page.py renders a template of templates/ and writes it; charts.py places lines and ticks; colours.py keeps class
colours legible on light and dark; pictures.py makes the pictures inside a page. templates/base.html and style.css
are what all pages share. What a page says is for its own room to gather: see training/report.py.
"""
