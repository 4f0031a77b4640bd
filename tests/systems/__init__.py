# the layout of the generated data that each system reads
LAYOUTS = {"classification": "image_folder"}
