// Multiply-accumulate lanes: each of OUTS lanes sums INS products a beat, from a first to a last beat, on top of its bias.
//
// DEPTHWISE = 0: every lane has all INS elements of the beat. DEPTHWISE = 1: INS is 1 and lane i has element i of the beat.
// A word of WEIGHTS (memory file, hexadecimal) holds the weights of a beat, OUTS x INS of them, input fastest; words are read one
// after another, DEPTH of them, and again. A word of BIASES holds OUTS biases; TURNS of them. Sums are exact: SUM bits hold every
// one that occurs. DEPTH <= 2**ABITS, TURNS <= 2**TBITS, PRODUCT = XBITS + WBITS (XBITS with a sign bit), 2**LEVELS >= INS.
module edgesdk_macs #(
    parameter integer INS = 1,
    parameter integer OUTS = 1,
    parameter integer DEPTHWISE = 0,
    parameter integer WIDTH = 8,
    parameter integer SIGNED = 1,
    parameter integer WBITS = 8,
    parameter integer BBITS = 16,
    parameter integer SUM = 24,
    parameter integer LEVELS = 0,
    parameter integer DEPTH = 16,
    parameter integer ABITS = 4,
    parameter integer TURNS = 1,
    parameter integer TBITS = 1,
    parameter WEIGHTS = "",
    parameter BIASES = ""
) (
    input  wire                                          clk,
    input  wire                                          rst,
    input  wire                                          s_valid,
    output wire                                          s_ready,
    input  wire [(DEPTHWISE != 0 ? OUTS : INS) * WIDTH - 1:0] s_data,
    input  wire                                          s_first,
    input  wire                                          s_last,
    output wire                                          m_valid,
    input  wire                                          m_ready,
    output wire [OUTS*SUM-1:0]                           m_data
);
    localparam LANES = DEPTHWISE != 0 ? OUTS : INS;
    localparam XBITS = SIGNED != 0 ? WIDTH : WIDTH + 1;
    localparam PRODUCT = XBITS + WBITS;
    localparam TREE = PRODUCT + LEVELS;
    localparam STAGES = 3 + LEVELS;
    localparam integer LAST_WORD_COUNT = DEPTH - 1;
    localparam [ABITS-1:0] LAST_WORD = LAST_WORD_COUNT[ABITS-1:0];
    localparam integer LAST_TURN_COUNT = TURNS - 1;
    localparam [TBITS-1:0] LAST_TURN = LAST_TURN_COUNT[TBITS-1:0];

    reg [OUTS*INS*WBITS-1:0] rom [0:DEPTH-1];
    reg [OUTS*BBITS-1:0]     bias_rom [0:TURNS-1];
    generate
        if (WEIGHTS != "") begin : filled  // tools that read this module alone have no files
            initial $readmemh(WEIGHTS, rom);
            initial $readmemh(BIASES, bias_rom);
        end
    endgenerate

    // Twice: block RAM is slow to give its word, and a multiplier is slow to take it.
    reg [OUTS*INS*WBITS-1:0] word, weights;
    reg [LANES*WIDTH-1:0]    beat, x;
    reg [ABITS-1:0]          address;
    reg [TBITS-1:0]          turn;
    // Of the beats in the pipeline: 0 and 1 have their operands, 2 its products, 3 and later levels of the tree.
    reg [STAGES-1:0]         valid, first, last;
    reg                      done;

    wire en = !done || m_ready;
    assign s_ready = en;
    assign m_valid = done;

    always @(posedge clk) begin
        if (en) word <= rom[address];
        if (en) beat <= s_data;
        if (en) weights <= word;
        if (en) x <= beat;
    end

    always @(posedge clk) begin
        if (en) begin
            valid <= {valid[STAGES-2:0], s_valid};
            first <= {first[STAGES-2:0], s_first};
            last <= {last[STAGES-2:0], s_last};
            done <= valid[STAGES-1] && last[STAGES-1];
            if (s_valid) address <= address == LAST_WORD ? {ABITS{1'b0}} : address + 1'b1;
        end
        if (rst) begin
            valid <= {STAGES{1'b0}};
            done <= 1'b0;
            address <= {ABITS{1'b0}};
        end
    end

    // The biases of a turn are read while its first beat is a stage before the accumulators.
    reg [OUTS*BBITS-1:0] biases;
    always @(posedge clk) if (en) biases <= bias_rom[turn];
    always @(posedge clk) begin
        if (en && valid[STAGES-2] && first[STAGES-2]) turn <= turn == LAST_TURN ? {TBITS{1'b0}} : turn + 1'b1;
        if (rst) turn <= {TBITS{1'b0}};
    end

    genvar o, i;
    generate
        for (o = 0; o < OUTS; o = o + 1) begin : lane
            wire [INS*PRODUCT-1:0] products;
            for (i = 0; i < INS; i = i + 1) begin : term
                localparam X = DEPTHWISE != 0 ? o : i;
                wire signed [XBITS-1:0]   a;
                wire signed [WBITS-1:0]   b = weights[(o*INS+i)*WBITS+:WBITS];
                reg  signed [PRODUCT-1:0] product;
                if (SIGNED != 0) begin : with_sign
                    assign a = x[X*WIDTH+:WIDTH];
                end else begin : without
                    assign a = {1'b0, x[X*WIDTH+:WIDTH]};
                end
                always @(posedge clk) if (en) product <= a * b;
                assign products[i*PRODUCT+:PRODUCT] = product;
            end
            wire signed [TREE-1:0] total;
            edgesdk_tree #(
                .COUNT(INS), .LEVELS(LEVELS), .WIDTH(PRODUCT), .MAX(0), .OUT(TREE)
            ) tree (.clk(clk), .en(en), .x(products), .y(total));
            wire signed [BBITS-1:0] bias = biases[o*BBITS+:BBITS];
            reg  signed [SUM-1:0]   sum;
            wire signed [SUM-1:0]   base = first[STAGES-1] ? {{(SUM - BBITS){bias[BBITS-1]}}, bias} : sum;
            assign m_data[o*SUM+:SUM] = sum;
            if (SUM > TREE) begin : wider
                always @(posedge clk) if (en && valid[STAGES-1]) sum <= base + {{(SUM - TREE){total[TREE-1]}}, total};
            end else begin : narrower
                wire unused = &{1'b0, total};
                always @(posedge clk) if (en && valid[STAGES-1]) sum <= base + total[SUM-1:0];
            end
        end
    endgenerate
endmodule
