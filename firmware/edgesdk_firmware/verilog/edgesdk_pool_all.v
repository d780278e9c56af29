// Sum (MAX = 0) or maximum (MAX = 1) over all PIXELS of an image, FOLDS beats of LANES channels each: no line is stored, only what
// has been summed. PIXELS <= 2**PBITS, FOLDS <= 2**FBITS.
module edgesdk_pool_all #(
    parameter integer LANES = 1,
    parameter integer WIDTH = 8,
    parameter integer SIGNED = 1,
    parameter integer MAX = 0,
    parameter integer OUT = 12,
    parameter integer PIXELS = 49,
    parameter integer PBITS = 6,
    parameter integer FOLDS = 1,
    parameter integer FBITS = 1
) (
    input  wire                   clk,
    input  wire                   rst,
    input  wire                   s_valid,
    output wire                   s_ready,
    input  wire [LANES*WIDTH-1:0] s_data,
    output reg                    m_valid,
    input  wire                   m_ready,
    output reg  [LANES*OUT-1:0]   m_data
);
    localparam integer LAST_PIXEL_COUNT = PIXELS - 1;
    localparam [PBITS-1:0] LAST_PIXEL = LAST_PIXEL_COUNT[PBITS-1:0];
    localparam integer LAST_FOLD_COUNT = FOLDS - 1;
    localparam [FBITS-1:0] LAST_FOLD = LAST_FOLD_COUNT[FBITS-1:0];

    reg  [LANES*OUT-1:0] memory [0:FOLDS-1];
    reg  [PBITS-1:0]     pixel;
    reg  [FBITS-1:0]     fold;
    wire [LANES*OUT-1:0] held = memory[fold];
    wire [LANES*OUT-1:0] next;
    wire                 en = !m_valid || m_ready;

    assign s_ready = en;

    genvar i;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : lane
            edgesdk_combine #(
                .WIDTH(WIDTH), .SIGNED(SIGNED), .MAX(MAX), .OUT(OUT)
            ) combine (.first(pixel == 0), .x(s_data[i*WIDTH+:WIDTH]), .held(held[i*OUT+:OUT]), .next(next[i*OUT+:OUT]));
        end
    endgenerate

    always @(posedge clk) begin
        if (en && s_valid) memory[fold] <= next;
        if (en && s_valid) m_data <= next;
    end

    always @(posedge clk) begin
        if (en) begin
            m_valid <= s_valid && pixel == LAST_PIXEL;
            if (s_valid) begin
                fold <= fold == LAST_FOLD ? {FBITS{1'b0}} : fold + 1'b1;
                if (fold == LAST_FOLD) pixel <= pixel == LAST_PIXEL ? {PBITS{1'b0}} : pixel + 1'b1;
            end
        end
        if (rst) begin
            m_valid <= 1'b0;
            fold <= {FBITS{1'b0}};
            pixel <= {PBITS{1'b0}};
        end
    end
endmodule
