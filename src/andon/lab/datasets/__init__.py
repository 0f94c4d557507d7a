"""Published data sets on this disk: what is there, what is missing, and their products as folders; never a download.

`table` states each data set: its products, published counts and their source; `layouts` and `lists` read the layouts in
which they are distributed; `checking` compares the two; `arranging` makes folders with train and test where a layout
has others.
"""
