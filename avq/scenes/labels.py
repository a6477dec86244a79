CLASS_NAMES = ("car", "truck", "pedestrian", "cyclist", "traffic_light")
