# the layout of the generated data that each system reads
LAYOUTS = {
    "classification": "image_folder",
    "retinanet": "coco",
    "mask_rcnn": "coco",
    "detr": "coco",
    "semantic_fpn": "ade20k",
    "trans2seg": "ade20k",
}
